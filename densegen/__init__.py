"""densegen: a course on generative modelling that you run."""
__version__ = "0.1.0"
