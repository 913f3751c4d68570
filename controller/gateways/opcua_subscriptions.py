"""Subscriptions and monitored items of the gateway, put over asyncua's.

What is different from asyncua 2.1.0, and why, is said at each class; ``opcua_guard`` makes the server use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import structlog
from asyncua import ua
from asyncua.common.utils import ServiceError
from asyncua.server.address_space import AttributeValue
from asyncua.server.monitored_item_service import MonitoredItemData, MonitoredItemService
from asyncua.server.subscription_service import SubscriptionService

from controller.gateways.opcua_ua import StatusCodes, status

log = structlog.get_logger("controller.gateways.opcua")

MIN_PUBLISHING_MS = 50.0
MAX_PUBLISHING_MS = 60_000.0
MIN_LIFETIME_MS = 300_000.0
"""A subscription outlives this much silence of its client: HMIs that freeze for seconds must not go blind."""
MAX_ITEMS_PER_SUBSCRIPTION = 20_000


def put_value(attribute: AttributeValue, value: ua.DataValue) -> None:
    """Set a variable's value and tell its monitored items, without a coroutine per value.

    One failing monitored item is logged and does not keep the value from the others.
    """
    attribute.value = value
    for handle, callback in tuple(attribute.datachange_callbacks.items()):
        try:
            cast("GuardedMonitoredItems", callback.__self__).notify(handle, value)  # type: ignore[attr-defined]
        except Exception:
            log.exception("a monitored item failed and missed a value", handle=handle)


class GuardedMonitoredItems(MonitoredItemService):
    """Monitored items of one subscription.

    asyncua compares a deadband with the last value *written* (a slow ramp never reports), raises on a Bad value
    inside it (the loss of quality is lost), copies every value deeply and searches linearly on deletion. Here
    the last *reported* value counts (Part 8, 7.2), and a change of quality always passes (Part 4, 7.22.2).
    """

    _monitored_items: dict[int, MonitoredItemData]

    async def create_monitored_items(
        self, params: ua.CreateMonitoredItemsParameters
    ) -> list[ua.MonitoredItemCreateResult]:
        """Create items; those beyond the limit of the subscription answer BadTooManyMonitoredItems."""
        wanted = list(params.ItemsToCreate)
        room = max(0, MAX_ITEMS_PER_SUBSCRIPTION - len(self._monitored_items))
        params.ItemsToCreate = wanted[:room]
        results = await super().create_monitored_items(params)
        for _ in wanted[room:]:
            refused = ua.MonitoredItemCreateResult()
            refused.StatusCode = status(StatusCodes.BadTooManyMonitoredItems)
            results.append(refused)
        return results

    async def _create_data_change_monitored_item(
        self, params: ua.MonitoredItemCreateRequest
    ) -> ua.MonitoredItemCreateResult:
        code = _judge_filter(params.RequestedParameters.Filter)
        if code:
            refused = ua.MonitoredItemCreateResult()
            refused.StatusCode = status(code)
            return refused
        return await super()._create_data_change_monitored_item(params)

    def _create_events_monitored_item(self, params: ua.MonitoredItemCreateRequest) -> ua.MonitoredItemCreateResult:
        if not hasattr(params.RequestedParameters.Filter, "WhereClause"):
            refused = ua.MonitoredItemCreateResult()
            refused.StatusCode = status(StatusCodes.BadMonitoredItemFilterInvalid)
            return refused
        return super()._create_events_monitored_item(params)

    def _modify_monitored_item(self, params: ua.MonitoredItemModifyRequest) -> ua.MonitoredItemModifyResult:
        result = ua.MonitoredItemModifyResult()
        item = self._monitored_items.get(params.MonitoredItemId)
        asked = params.RequestedParameters
        code = (
            StatusCodes.BadMonitoredItemIdInvalid
            if item is None
            else _judge_filter(asked.Filter)
            if item.callback_handle is not None
            else 0
        )
        if item is None or code:
            result.StatusCode = status(code)
            return result
        item.client_handle = asked.ClientHandle
        item.queue_size = self._revise_queue_size(asked.QueueSize)
        if item.callback_handle is not None:
            item.filter = asked.Filter
        result.RevisedSamplingInterval = self.isub.data.RevisedPublishingInterval
        result.RevisedQueueSize = ua.UInt32(item.queue_size)
        return result

    def _delete_monitored_items(self, mid: int) -> ua.StatusCode:
        item = self._monitored_items.get(mid)
        if item is None or item.callback_handle is None:
            return super()._delete_monitored_items(mid)
        self.aspace.delete_datachange_callback(item.callback_handle)
        self._monitored_datachange.pop(item.callback_handle, None)
        self._monitored_items.pop(mid)
        return ua.StatusCode()

    async def datachange_callback(self, handle: int, value: ua.DataValue, error: ua.StatusCode | None = None) -> None:
        """Called by asyncua for values that it writes itself (server status, first value of an item)."""
        if error:
            await super().datachange_callback(handle, value, error)
        else:
            self.notify(handle, value)

    def notify(self, handle: int, value: ua.DataValue) -> None:
        """Queue the value for its client if it differs enough from the last one reported.

        At the queue's bound the oldest value is dropped; the newest always arrives.
        """
        mid = self._monitored_datachange.get(handle)
        if mid is None:
            return
        item = self._monitored_items[mid]
        if item.mode == ua.MonitoringMode.Disabled:
            return
        last = item.mvalue.current_dvalue
        if last is not None and not _changed(last, value, item.filter):
            return
        item.mvalue.current_dvalue = value
        notification = ua.MonitoredItemNotification()
        notification.ClientHandle = ua.UInt32(item.client_handle or 0)
        notification.Value = value
        queue = self.isub._triggered_datachanges.setdefault(mid, [])
        if item.queue_size and len(queue) >= item.queue_size:
            del queue[0]
        queue.append(notification)


def _judge_filter(wanted: Any) -> int:
    """0, or the status code that refuses a data change filter (Part 4, 7.22.2)."""
    if wanted is None or isinstance(wanted, ua.ExtensionObject):
        return 0
    if not hasattr(wanted, "DeadbandType"):
        return StatusCodes.BadMonitoredItemFilterUnsupported
    if wanted.DeadbandType == ua.DeadbandType.Percent:
        return StatusCodes.BadMonitoredItemFilterUnsupported
    if not (math.isfinite(wanted.DeadbandValue) and wanted.DeadbandValue >= 0):
        return StatusCodes.BadDeadbandFilterInvalid
    return 0


def _changed(last: ua.DataValue, value: ua.DataValue, wanted: Any) -> bool:
    if last.StatusCode != value.StatusCode:
        return True
    trigger = getattr(wanted, "Trigger", ua.DataChangeTrigger.StatusValue)
    if trigger == ua.DataChangeTrigger.StatusValueTimestamp and last.SourceTimestamp != value.SourceTimestamp:
        return True
    if trigger == ua.DataChangeTrigger.Status:
        return False
    old = None if last.Value is None else last.Value.Value
    new = None if value.Value is None else value.Value.Value
    if getattr(wanted, "DeadbandType", 0) == ua.DeadbandType.Absolute:
        numbers = isinstance(old, int | float) and isinstance(new, int | float)
        if numbers and not isinstance(old, bool):
            return bool(abs(cast("float", new) - cast("float", old)) > wanted.DeadbandValue)
    return bool(old != new)


class GuardedSubscriptionService(SubscriptionService):
    """Subscriptions with floors and caps.

    asyncua takes any publishing interval and lifetime as asked, and answers Republish for what it does not
    have with Good and an empty message, after which node-opcua clients never recover.
    """

    async def create_subscription(
        self,
        params: ua.CreateSubscriptionParameters,
        callback: Callable[..., Any],
        session_id: ua.NodeId,
        request_callback: Callable[..., Any] | None = None,
    ) -> ua.CreateSubscriptionResult:
        """Create one; publishing interval 50 ms to 60 s, life at least five minutes and three keep-alives."""
        wanted = params.RequestedPublishingInterval
        interval = (
            min(max(MIN_PUBLISHING_MS, wanted), MAX_PUBLISHING_MS) if not math.isnan(wanted) else MIN_PUBLISHING_MS
        )
        keep_alive = self._clamp_keep_alive_count(params.RequestedMaxKeepAliveCount)
        lifetime = max(params.RequestedLifetimeCount, 3 * keep_alive, math.ceil(MIN_LIFETIME_MS / interval))
        params.RequestedPublishingInterval = interval
        params.RequestedLifetimeCount = ua.UInt32(lifetime)
        result = await super().create_subscription(params, callback, session_id, request_callback)
        subscription = self.subscriptions[result.SubscriptionId]
        subscription.monitored_item_srv = GuardedMonitoredItems(subscription, self.aspace)
        return result

    def republish(self, params: ua.RepublishParameters) -> ua.NotificationMessage:
        """Part 4, 5.13.6: a message that is not kept any more is BadMessageNotAvailable."""
        subscription = self.subscriptions.get(params.SubscriptionId)
        if subscription is None:
            raise ServiceError(StatusCodes.BadSubscriptionIdInvalid)
        result: ua.PublishResult | None = subscription._not_acknowledged_results.get(params.RetransmitSequenceNumber)
        if result is None:
            raise ServiceError(StatusCodes.BadMessageNotAvailable)
        message: ua.NotificationMessage = result.NotificationMessage
        return message
