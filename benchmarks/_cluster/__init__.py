"""The discrete-event model of many teachers and students, and what it is checked against."""
