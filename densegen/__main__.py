"""`python -m densegen` is `densegen`."""
from densegen.course.cli import main

main()
