"""Generated worlds with landmarks, dialogs and requests."""
