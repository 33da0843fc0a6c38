"""Scores of label maps."""

from __future__ import annotations

from qsattn_plugin.data.images import show
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.figures import Figure
from qsattn_plugin.evaluation.labels import LabelMaps, compare_labels, label_scores
from qsattn_plugin.evaluation.pictures import Stage
from qsattn_plugin.registry import register


@register("metric", "labels")
def labels(predicted: LabelMaps, labels: LabelMaps, stage: Stage) -> list[Figure]:
    """Pixel accuracy, class accuracy and mIoU of predicted label maps, each 0 to 1, over the pixels of all pairs.

    Args:
        predicted: label maps to score.
        labels: the true ones.
        stage: shows progress.

    Raises:
        UserError: no pixel of the true maps has a class, or a file cannot be read.
    """
    with stage("label maps", len(predicted.pictures)) as done:
        table, resized = compare_labels(predicted, labels, done)
    if not table.sum():
        raise UserError(f"no pixel in {show(labels.pictures.folder)} has one of the 19 classes; are these label maps?")
    settings = {"classes": len(table), "predicted_kind": predicted.kind, "true_kind": labels.kind}
    settings["classes in the truth"] = int((table.sum(1) > 0).sum())
    resize = f"as they are; {resized} predictions brought to their truth's size (nearest)"
    images = {"pairs": len(predicted.pictures)}
    return [Figure(name, value, "higher", images, resize, settings) for name, value in label_scores(table).items()]
