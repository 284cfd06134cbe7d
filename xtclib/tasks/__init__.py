"""What is asked of a model. Importing the folder makes the tasks that come with it known."""

from xtclib.tasks import glue  # noqa: F401
