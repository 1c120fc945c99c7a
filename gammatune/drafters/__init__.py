"""What proposes tokens. Shipped drafters by the name that configs use; each is imported when it is chosen."""

SHIPPED = {"model": "gammatune.drafters.model.DraftModel", "lookup": "gammatune.drafters.lookup.Lookup"}
