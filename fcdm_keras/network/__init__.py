"""Networks: layers, conditioning modules, backbones behind one contract (`base.py`), and what they cost."""
