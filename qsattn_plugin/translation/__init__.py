"""Loading a trained generator, translating pictures and files of any size, exporting, importing, publishing."""
