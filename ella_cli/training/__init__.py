"""Training one task: the loss CE + λ · penalty in a Trainer, and the adapter it leaves.

assignment.py   what a stage is to learn, and what its manifest says of it
methods.py      what each method starts from and what it adds to the loss
strength.py     λ, given or found from a strength without units
mixin.py        λ · penalty in any Trainer, once a step, at exactly its weight
basis.py        AdamW's steps in the eigenvectors of the past's curvature
replay.py       which rows of earlier tasks are learned again
checks.py       what would fail in a stage, found before anything is written
trainer.py      the answers' cross-entropy, the curves, the stop at the first NaN
watch.py        what is seen of the steps: curves, a line of progress, signs
signs.py        a penalty that does too much, or nothing
row_order.py    which rows a step sees, from the seed and the epoch alone
checkpoints.py  inside a task: written whole, gone on from only if whole
carried.py      the last adapter trained on, for methods that carry one
measuring.py    the curvature of the task just learnt
task.py         rows in, adapter folder out
manifest.py     what ella.json is filled with
card.py         the model card beside the adapter
"""
