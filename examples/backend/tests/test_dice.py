from molecule_connect.testing import check_backend, running


async def test_it_throws_the_dice_that_a_message_names() -> None:
    async with running("dice", {"seed": "1"}) as backend:
        response = await backend.ask("please throw 3d6")

    total, _, thrown = response.text.partition(" ")
    assert int(total) == sum(int(each) for each in thrown.strip("()").split(" + "))
    assert backend.progress == ["throwing 3d6"]


async def test_a_wrong_default_is_found_before_the_first_message() -> None:
    async with running("dice", {"default": "six"}) as backend:
        assert await backend.check() == ["backend dice: default=six are no dice; write it as 2d6"]


async def test_it_keeps_to_what_a_connection_relies_on() -> None:
    await check_backend("dice")
