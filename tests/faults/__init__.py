"""Real faults: what fails, dies or is changed by others, and when."""
