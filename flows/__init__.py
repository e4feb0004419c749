"""What runs, in what order: the Prefect flow and the command line. No maths, no file formats."""
