"""The paper's method, a file a stage, in its order."""
