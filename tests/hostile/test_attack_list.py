"""The attack list: each attack, what happens, and the tests that show it.

A new row needs its tests; a test that is renamed or taken away is missed here. Close codes are Centrifugo's where the
fault is in what was said, and RFC 6455's where it is in how (errors.py).
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import logging
import re
import time
from configparser import ConfigParser
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from hub import auth
from hub.config import RedisSettings, Settings
from hub.store import Store
from tests.plane import SECRET, client, plane
from tests.support import async_test

ROOT = Path(__file__).parent.parent.parent
OWN = "hostile/test_attack_list.py"


class Row(NamedTuple):
    """verdict: status or close code. tests: FILE::NAME below tests/. open: what of it is not there yet."""

    verdict: str
    tests: tuple[str, ...]
    open: str = ""


ROWS = {
    "cross-site WebSocket hijacking": Row(
        "403 for a foreign Origin and for null, on every wire",
        (
            "test_origin.py::test_an_origin_is_judged_by_host_and_list",
            "transports/test_websocket.py::test_a_bad_handshake_is_refused_with_its_status",
            "transports/test_plain.py::test_pages_of_other_origins_are_refused_and_allowed_ones_told_so",
            "transports/test_http_stream.py::test_pages_of_foreign_origins_are_refused_and_allowed_ones_told_so",
            "transports/test_emulation.py::test_pages_of_foreign_origins_are_refused",
            "transports/test_polling.py::test_pages_of_other_origins_are_refused",
            "test_origin.py::test_all_wires_let_the_same_pages_in",
            "test_origin.py::test_a_wildcard_means_subdomains_and_nothing_else",
            "test_origin.py::test_http_pages_of_the_same_host_stay_out_of_all_wires_with_tls",
            "test_entrance.py::test_a_cookie_counts_for_pages_of_known_origins_only",
        ),
    ),
    "handshake slowloris, slow body": Row(
        "closed after http.header_timeout_s and http.body_timeout_s; 429 over twice limits.ip_connections",
        (
            "test_acceptor.py::test_a_newcomer_that_says_nothing_is_closed_at_its_deadline",
            "test_httpd.py::test_a_head_that_does_not_end_is_cut",
            "test_httpd.py::test_a_body_that_drips_wakes_nobody_until_a_piece_is_there",
            "test_httpd.py::test_a_body_that_does_not_come_is_cut",
            "hostile/test_short.py::test_no_attack_costs_a_normal_client_anything_but_time",
            "test_acceptor.py::test_an_address_has_so_many_sockets_without_a_client",
            "test_tls_handshake.py::test_an_address_that_comes_too_often_is_cut_before_its_handshake",
            "test_tls_handshake.py::test_who_does_not_finish_is_cut_at_the_deadline",
        ),
    ),
    "a store filled by one who may publish": Row(
        "100, temporary, for what would be kept beyond redis.full_percent; who is blocked goes all the same",
        (
            "e2e/test_full_store.py::test_a_client_cannot_fill_the_store",
            "test_headroom.py::test_a_full_store_keeps_nothing_more_for_clients_and_all_for_the_hub",
            "test_headroom.py::test_what_is_published_between_two_looks_counts",
        ),
    ),
    "connected but never authenticates": Row(
        "3502 after client.connect_timeout_s",
        (
            "transports/test_websocket.py::test_a_client_that_never_connects_is_closed_as_stale",
            "transports/test_socketio.py::test_a_client_that_joins_no_namespace_has_to_go",
        ),
    ),
    "huge headers, address, many headers, many query arguments": Row(
        "431, 414, 431, 400",
        (
            "test_httpd.py::test_what_is_too_large_or_no_http_is_refused_and_closed",
            "test_acceptor.py::test_a_head_beyond_its_bounds_is_refused_on_both_ways",
        ),
    ),
    "big body": Row(
        "413 before it is read, also in chunks; multipart and compressed ones 415",
        (
            "test_httpd.py::test_a_body_over_the_limit_is_413_before_it_is_read",
            "test_httpd.py::test_what_is_too_large_or_no_http_is_refused_and_closed",
            "transports/test_polling.py::test_a_body_over_the_limit_ends_the_session",
            "test_api.py::test_a_body_beyond_the_limit_is_refused",
        ),
    ),
    "bad key, version, method": Row(
        "400, 426, 405",
        (
            "transports/test_websocket.py::test_a_bad_handshake_is_refused_with_its_status",
            "transports/test_websocket.py::test_only_get_is_allowed",
        ),
    ),
    "oversized message, fragment flood, never-finished message": Row(
        "1009, 1008 over client.fragments, 1008 after client.message_timeout_s",
        (
            "transports/test_websocket.py::test_a_client_that_breaks_the_wire_is_closed_with_a_code_and_nobody_else",
            "test_frames.py::test_too_many_fragments_are_named_to_the_client",
            "test_frames.py::test_each_frame_of_a_message_behind_its_first_is_charged",
            "transports/test_websocket.py::test_who_cuts_messages_into_single_bytes_is_left_unread_sooner",
            "transports/test_websocket.py::test_a_message_that_does_not_end_in_time_is_closed",
            "test_frames.py::test_a_fault_takes_no_memory_of_the_message_that_it_ended",
        ),
    ),
    "compression bomb": Row(
        "1009 with no more memory than a message; read later, as what it becomes counts tenfold",
        (
            "transports/test_websocket_deflate.py::test_a_deflate_bomb_is_closed_as_too_big",
            "test_deflate.py::test_a_bomb_takes_no_more_memory_than_a_message",
            "test_deflate.py::test_what_a_message_inflates_to_is_charged_as_so_many_bytes",
            "transports/test_websocket_deflate.py::test_few_bytes_that_become_many_are_left_unread_sooner",
            "transports/test_websocket_deflate.py::test_what_comes_before_the_answer_is_not_inflated_in_one_go",
        ),
    ),
    "ping flood": Row(
        "one pong waits at most; 1008 over client.pings_per_s",
        (
            "transports/test_websocket.py::test_pings_of_a_client_that_does_not_read_pile_up_no_pongs",
            "test_quotas.py::test_a_flood_of_pings_is_closed",
        ),
    ),
    "message flood": Row(
        "one small read at a time from each; 111 over a rate or for what waits for Redis, 3013 when it goes on",
        (
            "e2e/test_fairness.py::test_floods_of_frames_leave_everybody_else_served",
            "test_session.py::test_commands_that_wait_for_redis_are_bounded",
            "test_protocol.py::test_what_is_no_command_ends_the_connection_as_a_bad_request",
            "test_quotas.py::test_commands_beyond_the_rate_fail_and_in_the_end_so_does_the_connection",
            "test_quotas.py::test_commands_over_a_stream_are_held_to_the_rate",
            "test_quotas.py::test_socketio_events_beyond_the_rate_fail_and_in_the_end_so_does_the_connection",
            "test_quotas.py::test_requests_beyond_the_rate_of_their_address_are_answered_429",
            "test_quotas.py::test_connections_of_one_address_share_its_rate",
            "test_quotas.py::test_sessions_of_one_user_share_its_rate",
        ),
    ),
    "slow reader": Row(
        "conflated, dropped and told, 3008; an answer of HTTP is cut after http.answer_timeout_s",
        (
            "transports/test_websocket.py::test_a_reader_that_stops_is_closed_as_slow_and_told_so",
            "transports/test_sse.py::test_a_listener_that_is_too_slow_is_closed_and_its_id_claims_nothing_unsent",
            "transports/test_engineio.py::test_a_session_that_does_not_poll_is_bounded",
            "test_outgoing.py::test_over_the_workers_bound_the_largest_backlog_goes",
            "test_httpd.py::test_who_does_not_read_its_answer_is_cut",
            "hostile/test_short.py::test_no_attack_costs_a_normal_client_anything_but_time",
        ),
    ),
    "work out of proportion to its bytes": Row(
        "read later: over limits.loop_ms_per_s and limits.ip_loop_ms_per_s; all of a worker over worker.busy_ms_per_s",
        (
            "test_fairness.py::test_who_has_much_to_say_gets_its_share_of_the_loop",
            "test_fairness.py::test_busy_connections_of_one_address_share_its_time",
            "test_fairness.py::test_all_busy_connections_together_have_a_share",
            "test_fairness.py::test_who_takes_little_is_never_put_off_for_its_neighbours",
            "test_quotas.py::test_a_worker_leaves_unread_who_keeps_its_loop_busy",
            "test_fairness.py::test_what_came_before_it_was_on_the_plane_costs_as_much",
            "transports/test_websocket.py::test_of_what_is_pipelined_no_more_is_taken_than_in_any_turn",
            "test_ingest.py::test_what_a_channel_costs_is_told_when_it_is_asked_for",
        ),
    ),
    "reconnect storm": Row(
        "503 with Retry-After beyond worker.handshakes_per_s, 429 beyond an address's own",
        (
            "test_acceptor.py::test_an_address_that_goes_on_connecting_is_reset_unread_and_then_kept_out",
            "test_curb.py::test_an_address_is_kept_out_for_a_while_and_no_other",
            "test_quotas.py::test_what_a_client_is_closed_for_counts_against_its_address",
            "test_reactor.py::test_while_publications_are_on_their_way_slices_are_smaller",
            "transports/test_websocket.py::test_who_has_gone_needs_no_look_for_garbage",
            "test_acceptor.py::test_too_many_handshakes_in_a_second_are_answered_503",
            "transports/test_plain.py::test_too_many_requests_at_a_time_are_turned_away",
            "transports/test_polling.py::test_too_many_handshakes_are_told_to_come_back",
            "transports/test_http_stream.py::test_a_draining_or_storming_worker_answers_503",
            "test_quotas.py::test_an_address_that_comes_too_often_is_answered_429",
        ),
    ),
    "JSON bombs": Row(
        "3501 for what is no JSON or of too many values, 107 for what is too deep, before it is parsed",
        (
            f"{OWN}::test_json_bombs",
            f"{OWN}::test_json_bombs_of_socketio",
            "test_publish.py::test_depth_counts_arrays_and_objects_that_stand_in_each_other",
            "test_nesting.py::test_a_bomb_is_refused_before_it_is_parsed",
            "test_nesting.py::test_no_text_takes_longer_than_its_length",
            "test_quotas.py::test_a_bomb_of_values_closes_the_connection",
            "test_quotas.py::test_a_command_that_is_nested_too_deep_fails",
            "test_quotas.py::test_a_socketio_event_that_is_nested_too_deep_fails",
        ),
    ),
    "token forgery: none, other algorithms, expired, not yet, huge": Row(
        "401 or 3500; 109 for an expired one",
        (
            "test_auth.py::test_an_attack_is_refused",
            "test_auth.py::test_any_change_of_a_good_token_is_refused",
            "test_auth.py::test_a_token_is_good_from_its_nbf_to_its_exp",
            "test_auth.py::test_claims_of_the_wrong_type_are_refused",
            "test_auth.py::test_audience_and_issuer_are_compared",
            "test_auth.py::test_only_alg_and_kid_of_a_header_count",
            "test_auth.py::test_a_remembered_token_can_be_revoked",
            "test_keys.py::test_a_kid_finds_its_key_and_no_other",
            "test_keys.py::test_a_public_key_is_good_for_the_algorithms_of_its_type",
        ),
    ),
    "keys from a URL (JWKS)": Row(
        "only a configured URL; 256 KB, 2 s, one fetch a minute for an unknown kid; the last good set stays",
        (
            "test_jwks.py::test_nothing_of_a_token_gets_into_the_request",
            "test_jwks.py::test_made_up_kids_do_not_hold_up_a_new_key",
            "test_jwks.py::test_a_bad_answer_leaves_the_keys_as_they_were",
            "test_jwks.py::test_a_silent_server_holds_nobody_up",
            "test_jwks.py::test_a_server_must_prove_who_it_is",
        ),
    ),
    "token in an address": Row(
        "redacted in every log; no Referer from our pages; tickets are good once, for a minute at most",
        (
            "transports/test_plain.py::test_no_token_reaches_the_log",
            "test_httpd.py::test_a_fault_in_a_handler_is_a_plain_500",
            "test_assets.py::test_the_demo_page_and_its_files_are_served_with_a_policy",
            "e2e/test_proxies.py::test_what_is_logged_holds_no_token",
            "test_tickets.py::test_a_ticket_is_good_once_on_any_worker",
            "test_tickets.py::test_a_ticket_ends_by_itself",
        ),
    ),
    "channel-name injection": Row(
        "107",
        (
            "test_channels.py::test_any_name_is_of_the_alphabet_or_refused",
            "test_channels.py::test_exactly_the_alphabet_is_allowed",
            "test_store.py::test_keys_of_one_channel_or_namespace_share_its_hash_tag",
        ),
    ),
    "event-stream injection": Row(
        "CR, LF and CRLF end a line of data and nothing else; ids are positions or 400",
        (
            "test_eventstream.py::test_a_client_reads_what_was_written_whatever_it_is",
            "test_eventstream.py::test_no_publication_breaks_a_frame",
            "transports/test_plain.py::test_a_bad_last_event_id_is_refused",
            "test_cursor.py::test_any_text_is_a_cursor_or_refused",
        ),
    ),
    "header injection": Row(
        "no answer repeats the request",
        (
            "test_httpd.py::test_an_unknown_address_is_404_and_repeats_nothing",
            "transports/test_plain.py::test_an_origin_that_fits_in_no_header_is_refused",
            "test_heads.py::test_an_answer_is_whole_and_ends_the_connection",
        ),
    ),
    "request smuggling": Row(
        "400 and the end; proxy and hub agree on every request",
        (
            "test_heads.py::test_what_servers_may_read_differently_is_refused",
            "test_heads.py::test_what_passes_has_the_framing_that_h11_finds",
            "hostile/test_smuggling.py::test_the_hub_takes_none_of_them_for_two_requests",
            "hostile/test_smuggling.py::test_a_proxy_and_the_hub_agree_on_every_request",
        ),
    ),
    "forged X-Forwarded-For": Row(
        "read from trusted proxies only",
        (
            "test_forwarded.py::test_what_a_client_writes_changes_nothing",
            "test_forwarded.py::test_the_walk_ends_at_the_first_who_is_no_proxy",
            "test_entrance.py::test_all_wires_see_the_address_behind_the_proxy",
            "e2e/test_proxies.py::test_what_the_hub_is_told_of_the_client",
            "e2e/test_proxies.py::test_the_hub_sees_who_is_behind_the_proxy",
            "e2e/test_proxies.py::test_haproxy_says_who_is_behind_it_by_the_proxy_protocol",
        ),
    ),
    "subscription flood": Row(
        "106 over client.channels, 3505 when it goes on; 111 over limits.channels of a worker",
        (
            "test_session.py::test_more_channels_than_allowed_are_refused",
            "test_quotas.py::test_whoever_goes_on_asking_for_more_channels_is_closed",
            "test_quotas.py::test_a_worker_has_so_many_channels",
        ),
    ),
    "exhaustion by one address or user": Row(
        "503 while descriptors are short; 429 to one address, 3504 to one user, counted on all workers",
        (
            "test_acceptor.py::test_a_full_process_answers_503_and_does_not_spin",
            "test_quotas.py::test_a_worker_with_all_its_clients_answers_503",
            "test_quotas.py::test_connections_of_an_address_are_counted_and_given_back",
            "test_acceptor.py::test_an_address_has_so_many_sockets_without_a_client",
            "test_quotas.py::test_who_waits_for_redis_takes_nobodys_place",
            "test_quotas.py::test_who_waits_for_the_application_takes_nobodys_place",
            "test_quotas.py::test_a_user_has_so_many_connections_and_then_3504",
            "test_quotas.py::test_a_user_is_counted_on_all_workers",
            "test_census.py::test_the_newcomer_that_is_one_too_many_is_closed_wherever_it_came",
        ),
    ),
    "Socket.IO: attachments": Row(
        "10 at most, bounded in bytes and time, after a namespace is joined",
        (
            "test_socketio_protocol.py::test_the_number_of_attachments_is_bounded",
            "test_socketio_protocol.py::test_attachments_are_bounded_in_bytes",
            "test_socketio_protocol.py::test_forgetting_frees_what_was_unfinished",
            "transports/test_socketio.py::test_attachments_have_a_deadline_and_need_a_namespace",
        ),
    ),
    "Socket.IO: sessions": Row(
        "ids of 128 random bits; one poll at a time; the revision stays; JSONP is off",
        (
            "transports/test_emulation.py::test_ids_are_of_128_random_bits_and_forgotten_with_their_stream",
            "transports/test_engineio.py::test_a_second_poll_beside_the_first_ends_the_session",
            "transports/test_polling.py::test_a_session_keeps_the_revision_that_it_began_with",
            "transports/test_polling.py::test_no_answer_is_a_script",
            "transports/test_polling.py::test_sessions_without_a_socket_are_counted",
        ),
    ),
    "Socket.IO: payloads": Row(
        "16 packets before a namespace is joined, in linear time; a bad body is answered and ends its session",
        (
            "test_engineio_protocol.py::test_packets_of_a_body_are_bounded",
            "test_engineio_protocol.py::test_any_body_is_packets_or_refused",
            "transports/test_polling.py::test_more_packets_than_a_body_may_hold_end_the_session",
            "transports/test_engineio.py::test_an_invalid_packet_ends_the_session",
        ),
    ),
    "session hijack": Row(
        "403 without a token of the same user",
        (
            "transports/test_polling.py::test_a_session_begun_with_a_token_stays_its_users",
            "transports/test_emulation.py::test_a_token_must_be_the_users_own",
            "transports/test_emulation.py::test_an_unknown_session_is_404_whatever_is_wrong_with_it",
        ),
    ),
    "exposure of the server API": Row(
        "its own listener; 401 without the key; without one off, and no start where others reach it",
        (
            "test_api.py::test_without_the_key_everything_is_a_401",
            "test_api.py::test_without_a_key_in_the_settings_the_api_is_off",
            "test_serve.py::test_without_a_key_others_can_not_reach_the_internal_listener",
            "test_serve.py::test_an_unguarded_listener_of_systemd_is_found_once_it_is_there",
        ),
    ),
    "forged requests of pages (CSRF)": Row(
        "a cookie only with an allow-list of origins; 415 for what a form can send; no credentials with *",
        (
            "transports/test_publishing.py::test_a_body_must_say_that_it_is_json",
            "transports/test_emulation.py::test_too_large_is_413_and_a_foreign_type_415",
            "test_cors.py::test_a_star_is_the_answer_to_all_origins",
        ),
    ),
    "timing": Row("keys are compared in constant time", (f"{OWN}::test_secrets_are_compared_in_constant_time",)),
    "messages between processes": Row(
        "JSON and counted bytes; nothing that runs",
        (
            f"{OWN}::test_nothing_that_is_read_can_run",
            "test_control.py::test_what_is_no_control_message_is_a_value_error",
            "test_control.py::test_a_malformed_errand_is_a_value_error",
            "test_relay.py::test_nonsense_ends_its_connection_only",
            "test_neighbours.py::test_without_the_secret_nobody_is_served",
        ),
    ),
    "access to Redis": Row(
        "a private socket, no port, no DEBUG",
        (
            "test_embedded.py::test_it_answers_on_a_private_socket_and_nowhere_else",
            "test_store.py::test_a_url_says_where_to_connect_and_hides_its_password",
        ),
    ),
    "log injection and flooding": Row(
        "one line for each event, repeated warnings at intervals",
        (
            f"{OWN}::test_nobody_writes_lines_into_the_log",
            "test_log.py::test_a_repeated_warning_is_let_through_once_a_period_with_a_count",
        ),
    ),
    "answers of cancelled Redis commands": Row(
        "their connection is closed: nobody else is given them",
        (f"{OWN}::test_a_cancelled_command_leaves_its_answer_to_nobody",),
    ),
    "known holes of libraries": Row("versions that have none", (f"{OWN}::test_libraries_are_new_enough",)),
}


@functools.cache
def names(file: str) -> frozenset[str]:
    """The tests of a file."""
    nodes = ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("name", ROWS)
def test_each_row_has_tests_that_are_there(name: str) -> None:
    """Or says that nothing of it is there yet."""
    row = ROWS[name]
    assert row.verdict and (row.tests or row.open)
    for test in row.tests:
        file, _, function = test.partition("::")
        assert function.startswith("test_") and function in names(file), test


@pytest.mark.parametrize("name", ROWS)
def test_settings_that_a_verdict_names_are_there(name: str) -> None:
    for part, setting in re.findall(r"\b(auth|client|http|limits|redis|tls|worker)\.([a-z_]+)", ROWS[name].verdict):
        assert setting in Settings.model_fields[part].annotation.model_fields, f"{part}.{setting}"


@async_test
async def test_a_cancelled_command_leaves_its_answer_to_nobody(valkey_url, prefix):
    """CVE-2023-28858: the next command on that connection would be answered with somebody else's data."""
    store = Store(RedisSettings(prefix=prefix), valkey_url)
    redis, other = store.commands(), store.commands()
    try:
        asked = asyncio.ensure_future(redis.blpop(f"{prefix}ann", 60))
        async with asyncio.timeout(5):
            while "blpop" not in {client["cmd"] for client in await other.client_list()}:
                await asyncio.sleep(0.01)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        await other.rpush(f"{prefix}ann", "hers")
        assert [await redis.get(f"{prefix}nothing") for _ in range(10)] == [None] * 10
    finally:
        await redis.aclose()
        await other.aclose()


DEEP = b"[" * 300 + b"]" * 300
BOMBS = [
    (DEEP, 107),
    (b"[" * 33 + b"]" * 33, 107),
    (b"[" * 2000 + b"]" * 2000, 3501),
    (b"[" * 30_000, 3501),
    (b"[" + b"[]," * 20_000 + b"1]", 3501),
    (b"NaN", 3501),
    (b"1e999", 3501),
    (rb'"\ud800"', 3501),
    (b'"\xed\xa0\x80"', 1007),
    (b"[1,]", 3501),
]


@pytest.mark.parametrize(("data", "code"), BOMBS, ids=range(len(BOMBS)))
@async_test
async def test_json_bombs(valkey_url, prefix, data, code):
    """An error reply where the JSON is good, otherwise the end of this one connection."""
    async with plane(valkey_url, prefix) as hub, client(hub.url) as one, client(hub.url) as beside:
        await beside.subscribe("open:a")
        message = b'{"id":9,"publish":{"channel":"open:a","data":%b}}' % data
        await one.socket.send(message, text=True)
        if code < 1000:
            assert orjson.loads(await one.socket.recv())["error"]["code"] == code
            assert "publish" in await one.command(publish={"channel": "open:a", "data": 1})
        else:
            with pytest.raises(ConnectionClosed):
                await one.socket.recv()
            assert one.socket.close_code == code
            assert "publish" in await beside.command(publish={"channel": "open:a", "data": 1})
        assert (await beside.push())["pub"]["data"] == 1


@async_test
async def test_json_bombs_of_socketio(valkey_url, prefix):
    """1002, by the limit of all wires."""
    async with plane(valkey_url, prefix) as hub:
        url = f"ws://127.0.0.1:{hub.port}/socket.io/?EIO=4&transport=websocket"
        async with connect(url, proxy=None, compression=None) as one:
            await one.recv()
            await one.send("40")
            assert str(await one.recv()).startswith("40{")
            await one.send('42["publish",{"channel":"open:a","data":[%s1]}]' % ("[]," * 20_000))
            with pytest.raises(ConnectionClosed):
                await one.recv()
            assert one.close_code == 1002


@async_test
async def test_nobody_writes_lines_into_the_log(valkey_url, prefix, caplog):
    """Not by the name in a token, an address, a header or a command: each event is one line."""
    caplog.set_level(logging.DEBUG, "hub")
    async with plane(valkey_url, prefix) as hub:
        token = auth.make("ann\r\nforged \x1b[2J", SECRET, 60, time.time())
        async with client(hub.url, token) as one:
            await one.command(subscribe={"channel": "open:a\nforged"})
            await one.command(**{"forged\nforged": {}})
            with pytest.raises(ConnectionClosed):
                await one.command(connect={"token": "x\nforged"})
        async with client(hub.url, origin=None, additional_headers={"User-Agent": "a\tforged"}):
            pass
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("hub")]
    assert any("ann" in line for line in lines)
    assert not [line for line in lines if re.search(r"[\r\n\x1b]", line)]


def sources() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "hub").rglob("*.py")}


def test_nothing_that_is_read_can_run() -> None:
    """No pickle, marshal, shelve, eval or exec.

    But for settings on the pipes between a supervisor and its own forks, which nobody else can write to.
    """
    for name, text in sources().items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                found = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", "") or ""}
                assert name == "hub/reloadable.py" or not found & {"pickle", "marshal", "shelve", "dill"}, name
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), name


SECRET_NAME = re.compile(r"(?:\w+\.)*(?:\w*secret|api\.key)")


def test_secrets_are_compared_in_constant_time() -> None:
    """`==` between texts that are called a key or a secret is nowhere, but against nothing."""
    compared = 0
    for name, text in sources().items():
        compared += text.count("hmac.compare_digest(")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                secret = any(map(SECRET_NAME.fullmatch, sides))
                assert not secret or "''" in sides, (name, ast.unparse(node))
    assert compared >= 2


LEAST = {"tornado": "6.6.1", "orjson": "3.11.5", "redis": "5", "PyJWT[crypto]": "2.13", "hiredis": "3.5"}
"""Older ones have holes that matter here: CVE-2026-49853 to -49855 and unbounded parsing; CVE-2025-67221;
CVE-2023-28858; CVE-2026-32597 and -48523."""


def test_libraries_are_new_enough() -> None:
    """What setup.cfg asks for is at least that."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    asked = dict(line.split(">=") for line in config["options"]["install_requires"].split())
    for name, least in LEAST.items():
        assert [*map(int, asked[name].split("."))] >= [*map(int, least.split("."))], name
