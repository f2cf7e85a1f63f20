"""Capture: a teacher's answers about a whole corpus, asked for once and kept in a store.

    settings     what is captured, from whom, and within which bounds
    own_teacher  a teacher service started for the occasion
    checked      what is checked before anything is asked, and what is then known
    probe        a small question, to say beforehand what the whole will take
    asking_ahead requests in flight, within bounds, answered in any order
    progress     how far it is, to a person or to a log
    run          all of it, from the settings to the exit code

The corpus is prepared by `stillhouse.data`, as for training; the answers are written by `stillhouse.store`.
"""
