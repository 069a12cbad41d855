"""Whether a run fits, and how long it takes, before anything is loaded: numbers in, numbers out.

Data goes one way: the shape of a model and the job of a run give tokens, and these give memory and
time. Nothing here reads a recipe, and nothing else of softgrpo is imported. What is not counted is
an estimate, and says so.
"""
