"""The doors through which files come in: what passes one is whole, bounded and of the form that its reader expects."""
