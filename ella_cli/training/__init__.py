"""Training one task: the loss CE + λ · penalty in a Trainer, and the adapter it leaves.

methods.py   what each method starts from and what it adds to the loss
mixin.py     λ · penalty in any Trainer, once a step, at exactly its weight
trainer.py   the answers' cross-entropy, the curves, the stop at the first NaN
task.py      rows in, adapter folder out
manifest.py  ella.json and the model card beside the adapter
"""
