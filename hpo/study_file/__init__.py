"""What a study file may say: its sections, how it is read, and what is said of mistakes in it."""
