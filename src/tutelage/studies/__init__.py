"""Studies: one file per claim about why the methods work, reproduced at laptop size (`tutelage study NAME`)."""
