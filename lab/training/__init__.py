"""How the bundled small models were made: render random scenes, train, score. Not needed to use
them.
"""
