"""Students: small copies of the original's own blocks that learn what a span does, where no closed form is enough."""

from shoal.replace.students.build import Student, student_of
from shoal.replace.students.specs import STUDENTS, StudentSpec, students_of, two_blocks

__all__ = ["STUDENTS", "Student", "StudentSpec", "student_of", "students_of", "two_blocks"]
