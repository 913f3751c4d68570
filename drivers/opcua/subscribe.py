"""Subscriptions: the server tells what changed, one subscription per scan class (OPC 10000-4, 5.13 and 5.14).

What makes a value here as trustworthy as one that was read:

* *Age.* A publish answer cannot be older than the request it answers, so the values hold as of the sending of that
  request, minus the sampling interval. An answer that lay in the network for seconds proves nothing newer.
* *Order.* Messages are numbered. A gap is filled by Republish before anything after it is taken; where the server no
  longer has the message, the loss is counted and the group read anew.
* *Life.* At least twice a period the server shows that the subscription lives, by a notification or a keep-alive. The
  driver takes silence for a lost link.

The publish requests are kept outstanding from the answers' callbacks: no task, no timer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from asyncua import ua
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.status_codes import StatusCodes

from drivers.opcua.channel import Channel, ChannelLost, ServiceFault, encode, results_at
from drivers.opcua.datum import Datum
from drivers.opcua.groups import GroupState
from drivers.opcua.meter import Meter
from drivers.opcua.notification import Message, acknowledgements, distance, following, notification, published
from drivers.opcua.values import overflowed, status_text
from drivers.port import Reading

BATCH = 1000
"""Monitored items in one request where the server sets no limit."""
QUEUE = 2
"""Values kept between two publishings: with one, a lost value would not even be noticed (OPC 10000-4, 5.13.1.5)."""
MAX_REPAIR = 100
"""Missing messages that are asked for one by one; after more, reading everything is faster."""
MAX_FAULTS = 10
"""Publish requests that may fail in a row."""
LIFETIME_S = 60.0
"""How long the server keeps a subscription without a publish request."""
HARMLESS = frozenset({StatusCodes.BadTooManyPublishRequests, StatusCodes.BadTimeout, StatusCodes.BadRequestTimeout})
"""Faults of a publish request after which the next one may do."""
PROMPT = 0.6
"""Longest time between two signs of life, in periods of the scan class, for values as fresh as polled ones."""


class Feed:
    """The subscription of one scan class, and what it told so far."""

    def __init__(self, name: str, state: GroupState, period_s: float, meter: Meter) -> None:
        self.name, self.state, self.period_s, self._meter = name, state, period_s, meter
        self.subscription = 0
        self.life_ns = self._sampling_ns = 0
        self.proof_ns = self.heard_ns = 0
        """As of when the values hold, and when the server was last heard of."""
        self.behind = True
        """Something was missed: read the group anew."""
        self.torn = False
        """A message is lost for good. Its changes are in no later one, so from here on the group is polled."""
        self._hold: Reading | None = None
        self._written: dict[int, tuple[int, Datum | None]] = {}
        """By index: when a written tag was read back, and what was notified of it since."""
        self._expected = 1
        self._missing: list[int] = []
        self._waiting: list[Message] = []

    def begin(self, subscription: int, life_s: float, sampling_s: float, now_ns: int) -> None:
        """The server made the subscription."""
        self.subscription, self.heard_ns = subscription, now_ns
        self.life_ns, self._sampling_ns = int(life_s * 1e9), int(sampling_s * 1e9)

    def hold(self, reading: Reading) -> None:
        """The group was read. That reading counts until the notifications prove something newer."""
        self._hold = reading

    def read_back(self, index: int, data: Datum, stamp_ns: int) -> None:
        """A tag was written and read back. What notifications say of it counts when they prove something newer.

        Otherwise the value before the write would come back for a moment, as if the PLC had changed it by itself.
        """
        self.state.set(index, data)
        self._written[index] = (stamp_ns, None)

    def reading(self) -> Reading:
        """The newest values, without a round trip."""
        if self._hold is not None:
            if self.proof_ns < self._hold.stamp_ns:
                return self._hold
            self._hold = None
        return self.state.reading(self.proof_ns)

    def receive(self, message: Message, now_ns: int) -> int:
        """Take a message, in the order of the numbers. Returns the number to ask for again, 0 when there is none."""
        self.heard_ns = now_ns
        if self._missing:
            if len(self._waiting) >= MAX_REPAIR:
                raise ChannelLost("too many notifications while lost ones are asked for", "a server fault")
            self._waiting.append(message)
            return 0
        gap = distance(self._expected, message.number)
        if gap < 0:
            self._meter.strays += 1  # told twice
            return 0
        if gap > MAX_REPAIR:
            self._lose(gap)
            self.torn = True
        elif gap:
            number = self._expected
            for _ in range(gap):
                self._missing.append(number)
                number = following(number)
            self._waiting.append(message)
            return self._missing[0]
        self._take(message)
        return 0

    def repair(self, message: Message | None, now_ns: int) -> int:
        """The answer to a Republish, ``None`` when the server no longer has it. Returns what to ask for next, or 0."""
        number = self._missing.pop(0)
        self._expected = number
        if message is None or message.keep_alive or message.number != number:
            self._lose(1)
            self.torn = True
            self._expected = following(number)
        else:
            self._take(message._replace(sent_ns=0))
        if self._missing:
            return self._missing[0]
        waiting, self._waiting = self._waiting, []
        again = 0
        for each in waiting:
            again = self.receive(each, now_ns) or again
        return again

    def _lose(self, count: int) -> None:
        self._meter.missed += count
        self.behind = True

    def _take(self, message: Message) -> None:
        self._expected = message.number if message.keep_alive else following(message.number)
        for handle, data in message.changes:
            if handle >= len(self.state.nodes):
                raise ChannelLost(f"a change of item {handle}, which there is not", "a server fault")
            if overflowed(data.status):
                self._lose(1)
            if handle in self._written:
                self._written[handle] = (self._written[handle][0], data)
            else:
                self.state.set(handle, data)
        if not message.more:
            self.proof_ns = max(self.proof_ns, message.sent_ns - self._sampling_ns)
            for index, (stamp_ns, newest) in list(self._written.items()):
                if self.proof_ns >= stamp_ns:
                    del self._written[index]
                    if newest is not None:
                        self.state.set(index, newest)


class Publisher:
    """Makes the subscriptions of one session, and keeps publish requests outstanding."""

    def __init__(self, channel: Channel, meter: Meter, monotonic_ns: Callable[[], int]) -> None:
        self._channel, self._meter, self._now = channel, meter, monotonic_ns
        self._feeds: dict[int, Feed] = {}
        self._refused: set[int] = set()
        self._acknowledge: list[tuple[int, int]] = []
        self._outstanding = self._faults = self._target = 0
        self.problem: ChannelLost | None = None
        """Why nothing comes any more."""

    async def subscribe(self, feed: Feed, node_ids: Sequence[ua.NodeId], most: int) -> tuple[str, dict[int, str]]:
        """Create the subscription and its items, at most ``most`` (0: any number) with one request.

        Returns why there is no subscription (empty when there is), and by index why an item is not monitored.
        """
        try:
            number, interval_s, life_s = await self._create(feed.period_s)
        except ServiceFault as exc:
            return f"the server makes no subscription: {exc}", {}
        if not 0 < life_s <= feed.period_s * PROMPT:
            await self._delete(number)
            what = f"the server publishes every {interval_s:g} s and shows life every {life_s:g} s"
            return f"{what}, which is too slow for a period of {feed.period_s:g} s", {}
        refused, slowest_s = await self._monitor(number, feed, node_ids, most or BATCH)
        feed.begin(number, life_s, slowest_s, self._now())
        self._feeds[number] = feed
        return "", refused

    def start(self, round_trip_s: float) -> None:
        """Ask for the first notifications.

        A request that lies at the server for long makes its answer prove little, so there are no more of them than
        the network's delay needs, and never more than subscriptions.
        """
        per_second = sum(1e9 / feed.life_ns for feed in self._feeds.values())
        self._target = min(len(self._feeds), max(1, math.ceil(2 * round_trip_s * per_second)))
        self._fill()

    async def _create(self, period_s: float) -> tuple[int, float, float]:
        """A subscription: its number, how often it publishes, and how often it shows life, in s.

        Where the server wants a higher keep-alive count than 1, it is asked to publish so much more often.
        """
        wanted_s = period_s / 2
        request = ua.CreateSubscriptionRequest()
        parameters = request.Parameters
        parameters.RequestedPublishingInterval = wanted_s * 1000
        parameters.RequestedMaxKeepAliveCount = 1
        parameters.RequestedLifetimeCount = max(10, int(LIFETIME_S / wanted_s))
        parameters.MaxNotificationsPerPublish = 0
        parameters.PublishingEnabled = True
        made: Any = (await self._channel.request(request, ua.CreateSubscriptionResponse)).Parameters
        number, count = int(made.SubscriptionId), made.RevisedMaxKeepAliveCount
        if count > 1:
            change = ua.ModifySubscriptionRequest()
            change.Parameters.SubscriptionId = number
            change.Parameters.RequestedPublishingInterval = wanted_s / count * 1000
            change.Parameters.RequestedMaxKeepAliveCount = 1
            change.Parameters.RequestedLifetimeCount = max(10, int(LIFETIME_S / wanted_s * count))
            made = (await self._channel.request(change, ua.ModifySubscriptionResponse)).Parameters
        interval_s = made.RevisedPublishingInterval / 1000
        return number, interval_s, interval_s * max(1, made.RevisedMaxKeepAliveCount)

    async def _monitor(
        self, subscription: int, feed: Feed, node_ids: Sequence[ua.NodeId], most: int
    ) -> tuple[dict[int, str], float]:
        """Create the monitored items; their client handle is the tag's index in the group."""
        refused: dict[int, str] = {}
        slowest_s, too_slow = 0.0, []
        for first in range(0, len(node_ids), most):
            batch = range(first, min(first + most, len(node_ids)))
            request = ua.CreateMonitoredItemsRequest()
            request.Parameters.SubscriptionId = subscription
            request.Parameters.TimestampsToReturn = ua.TimestampsToReturn.Source
            request.Parameters.ItemsToCreate = [_item(node_ids[index], index, feed.period_s) for index in batch]
            results = (await self._channel.request(request, ua.CreateMonitoredItemsResponse)).Results
            if len(results) != len(batch):
                raise ChannelLost(f"{len(results)} results for {len(batch)} monitored items", "a server fault")
            for index, result in zip(batch, results, strict=True):
                sampling_s = result.RevisedSamplingInterval / 1000
                if result.StatusCode.is_bad():
                    refused[index] = f"not monitored: {status_text(result.StatusCode.value)}"
                elif sampling_s > feed.period_s * 1.1:
                    refused[index] = f"not monitored: the server samples every {sampling_s:g} s only"
                    too_slow.append(result.MonitoredItemId)
                else:
                    slowest_s = max(slowest_s, sampling_s)
        if too_slow:
            unwanted = ua.DeleteMonitoredItemsRequest()
            unwanted.Parameters.SubscriptionId = subscription
            unwanted.Parameters.MonitoredItemIds = too_slow
            await self._channel.request(unwanted, ua.DeleteMonitoredItemsResponse)
        return refused, slowest_s

    async def _delete(self, subscription: int) -> None:
        self._refused.add(subscription)
        request = ua.DeleteSubscriptionsRequest()
        request.Parameters.SubscriptionIds = [subscription]
        await self._channel.request(request, ua.DeleteSubscriptionsResponse)

    def _fill(self) -> None:
        while self._outstanding < self._target and self.problem is None:
            acknowledge, self._acknowledge = self._acknowledge, []
            self._outstanding += 1
            take = functools.partial(self._answered, self._now())
            self._channel.send("Publish", acknowledgements(acknowledge), take)

    def _answered(self, sent_ns: int, answer: bytes | Exception) -> None:
        """The answer to one publish request; the next goes out at once."""
        self._outstanding -= 1
        if isinstance(answer, ServiceFault):
            self._fault(answer.code)
        elif isinstance(answer, bytes):
            self._faults = 0
            self._take(answer, sent_ns)
        else:
            return  # the channel is lost, which whoever uses it next is told
        self._fill()

    def _fault(self, code: int) -> None:
        self._faults += 1
        if code == StatusCodes.BadTooManyPublishRequests:
            self._target = max(1, self._target - 1)
        if code not in HARMLESS or self._faults > MAX_FAULTS:
            self.problem = ChannelLost(
                f"publish: {status_text(code)}", "the server lost the subscriptions; see its log"
            )

    def _take(self, body: bytes, sent_ns: int) -> None:
        try:
            subscription, message = published(body, results_at(body), sent_ns)
        except ChannelLost as exc:
            self.problem = exc  # readable, but the end of the subscription
            return
        if not message.keep_alive:
            self._acknowledge.append((subscription, message.number))
        feed = self._feeds.get(subscription)
        if feed is not None:
            self._ask_again(feed, feed.receive(message, self._now()))
        elif subscription not in self._refused:
            self._meter.strays += 1
            raise ChannelLost(f"a notification of subscription {subscription}, which is not ours", "a server fault")

    def _ask_again(self, feed: Feed, number: int) -> None:
        """Republish of a lost message; after its answer the next."""
        if not number:
            return
        request = ua.RepublishRequest()
        request.Parameters.SubscriptionId = feed.subscription
        request.Parameters.RetransmitSequenceNumber = number

        def answered(answer: bytes | Exception) -> None:
            if isinstance(answer, ChannelLost):
                return
            message = None
            if isinstance(answer, bytes):
                message = notification(answer, results_at(answer), False, 0)
            elif isinstance(answer, ServiceFault) and answer.code != StatusCodes.BadMessageNotAvailable:
                self.problem = ChannelLost(f"republish: {status_text(answer.code)}", "see the server's log")
                return
            if message is not None and not message.keep_alive:
                self._acknowledge.append((feed.subscription, message.number))
            self._ask_again(feed, feed.repair(message, self._now()))

        self._channel.send(*encode(request), answered)


def _item(node_id: ua.NodeId, handle: int, period_s: float) -> ua.MonitoredItemCreateRequest:
    item = ua.MonitoredItemCreateRequest()
    item.ItemToMonitor.NodeId = node_id
    item.ItemToMonitor.AttributeId = AttributeIds.Value
    item.MonitoringMode = ua.MonitoringMode.Reporting
    parameters = item.RequestedParameters
    parameters.ClientHandle, parameters.SamplingInterval = handle, period_s * 1000
    parameters.QueueSize, parameters.DiscardOldest = QUEUE, True
    return item
