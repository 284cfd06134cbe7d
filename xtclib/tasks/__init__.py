"""What is asked of a model. Importing the folder makes the tasks that come with it known."""

from xtclib.tasks.base import Task, TaskData, find_task, register
from xtclib.tasks.glue import TASKS, glue_score
from xtclib.tasks.rows import Split

__all__ = ["TASKS", "Split", "Task", "TaskData", "find_task", "glue_score", "register"]
