"""`hpo report`: one HTML file that says what a search found, what is confirmed of it, what it cost and
how to repeat it.

facts.py reads the database; figures.py draws curves and points; pictures.py shows images, features and mistakes, where
images and weights are at hand; page.py puts them into template.html.
"""
