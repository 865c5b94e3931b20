"""Fine-tune a language model on one task after another without losing the earlier ones.

The tree tells the story of the data, left to right:

    task text -> Batch -> frozen model + past + LoRA -> CE + λ·‖ΔW ⊙ W_past‖² -> Adapter -> Past
    tasks/       tasks/   model/                        training/, penalty.py    adapter.py  past/

    -> AccuracyMatrix -> report
       accuracy.py       report/

One letter, one meaning: M rows (out features), N columns (in features), R LoRA rank,
S sequences, L tokens, K tasks. B and A are the LoRA factors, so B is never a batch.
"""

__version__ = "0.1.0"
