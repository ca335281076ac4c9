"""The comparison of several runs: groups of seeds, paired differences, a ranking, one page."""
