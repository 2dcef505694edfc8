"""What the computer has. Standard library only."""
