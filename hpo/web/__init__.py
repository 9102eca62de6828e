"""`hpo dashboard`: what the page shows and changes, who may see it, how it is served. May import search and doors."""
