"""`hpo export`: the best network as a folder that other programs read, with a card that says what is known of it.

folder.py writes it; card.py writes the model card; predict.py is copied into it; loading.py reads it back.
"""
