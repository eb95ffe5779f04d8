"""The hub's application for these tests: what it answers shows what arrived, how often and in which order."""

from hub.app import App, Client

ROOM = "room:all"

app = App()


@app.on("enter")
async def enter(client: Client) -> bool:
    """The client is in the room when it has the ack."""
    await client.join(ROOM)
    client.state["seen"] = 0
    return True


@app.on("work")
async def work(client: Client, name: str, number: int) -> list:
    """Its own words back, and how many such events came before: `number`, where none was lost, doubled or overtaken."""
    seen = client.state["seen"]
    client.state["seen"] = seen + 1
    return [name, number, seen]


@app.on("leave")
async def leave(client: Client) -> int:
    """How many events came in all."""
    return client.state["seen"]
