"""Metrics: registered functions, one a file; each module in this folder is imported when metrics are first asked for.

A metric is called with keywords, and the names in its signature say what it needs. An evaluation gives these:

=====================  =======================================================================================
``scored``             the scored pictures, :class:`~qsattn_plugin.evaluation.pictures.Pictures`
``real``               pictures of the target domain, at least two (``--real``)
``source``, ``masks``  the partner of each scored picture, in the order of ``scored`` (``--source``, ``--masks``)
``features``           features of ``scored`` and ``real``, computed once for all metrics
                       (:class:`~qsattn_plugin.evaluation.features.FeatureSets`; ``--real``)
``labels``             true label maps (:class:`~qsattn_plugin.evaluation.labels.LabelMaps`; ``--labels``)
``predicted``          predicted label maps (``--predicted``, otherwise ``scored``)
``lpips_network``      :class:`~qsattn_plugin.evaluation.fidelity.Lpips`, loaded before anything is translated
``seed``, ``subsets``, ``subset_size``, ``batch``, ``device``
                       settings of :class:`~qsattn_plugin.evaluation.scoring.Evaluation`
``stage``              shows progress, a :data:`~qsattn_plugin.evaluation.pictures.Stage`
``warn``               takes a sentence that the user should know before quoting a figure
=====================  =======================================================================================

An argument without a default must be available: the evaluation says which folder is missing before it computes
anything. One with a default is optional. A metric returns a :class:`~qsattn_plugin.evaluation.figures.Figure` or a list
of them.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
