"""Images out: loading a trained generator, translating pictures and files of any size, picture grids."""
