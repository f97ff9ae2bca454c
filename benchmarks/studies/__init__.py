"""Does it help? Trainings with and without, several seeds each."""
