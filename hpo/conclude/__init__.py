"""From a finished search to a claim: the statistics of a confirmation, and what they say in words. Imports
the search."""
