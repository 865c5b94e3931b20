"""Stages × tasks -> scores, resumable cell by cell.

decode.py   what a model answers: greedy generation, or the likeliest label
grid.py     every stage on every task; a cell is a file, made again only if asked otherwise
results.py  the matrix with its metrics as the document that is results.json
"""
