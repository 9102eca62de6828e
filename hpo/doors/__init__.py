"""The contracts that members of hpo and of installed packages keep, and how they are found by name.

Imports nothing of hpo but study_file's sections and errors; PyTorch only within functions.
"""
