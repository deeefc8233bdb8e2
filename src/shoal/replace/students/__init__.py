"""Students: small copies of the original's own blocks that learn what a span does, where no closed form is enough."""

from shoal.replace.students.making import Student, student_of
from shoal.replace.students.wanted import STUDENTS, WantedStudent, students_of, two_blocks

__all__ = ["STUDENTS", "Student", "WantedStudent", "student_of", "students_of", "two_blocks"]
