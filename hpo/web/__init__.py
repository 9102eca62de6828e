"""`hpo dashboard`: what the page shows and changes, access control, and the server. May import search and doors."""
