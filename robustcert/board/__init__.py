"""A board that re-checks: certificate folders from anybody, each proved again or refused."""
