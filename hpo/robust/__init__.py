"""Parts of the objective `robust-accuracy`, which both worlds meet in; files in hpo/objectives/ are objectives."""
