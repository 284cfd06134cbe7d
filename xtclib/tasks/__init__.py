"""What is asked of a model. Importing the folder makes the tasks that come with it known."""

from xtclib.tasks import glue, reviews  # noqa: F401
from xtclib.tasks.base import Task, TaskData, find_task, register
from xtclib.tasks.masked import MaskedWords
from xtclib.tasks.questions import Questions, questions
from xtclib.tasks.rows import Calibration, Split
from xtclib.tasks.tags import Tags, tags
from xtclib.tasks.vectors import Vectors, vectors

__all__ = ["Calibration", "MaskedWords", "Questions", "Split", "Tags", "Task", "TaskData",
           "Vectors", "find_task", "questions", "register", "tags", "vectors"]  # fmt: skip
