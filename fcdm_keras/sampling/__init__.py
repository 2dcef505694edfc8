"""From a trained model to images: what is asked for (`flags.py`, `request.py`), drawn, and written (`writers.py`)."""
