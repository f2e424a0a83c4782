"""Tuning of exit heads: self-generated text, distillation from the full model, export.

`python -m collm.tune all` makes the exits that ship in `collm/assets/exits`.
Needs PyTorch (`pip install 'collm[tune]'`); nothing else in CoLLM imports this room.

Not covered: tuning of the backbone itself, federated and RL training.
"""
