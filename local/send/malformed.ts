import type { LoginEvent } from './events.ts';
import type { Random } from './random.ts';

/** Typical faults of senders, each made from a valid event. */
const FAULTS: readonly [(event: LoginEvent) => string, ...((event: LoginEvent) => string)[]] = [
  // For another queue.
  () => JSON.stringify({ foo: 'oops_wrong_msg_type', bar: '123' }),
  // Cut off.
  (event) => JSON.stringify(event).slice(0, -20),
  () => 'login ok',
  () => 'x',
  (event) => JSON.stringify([event]),
  (event) => JSON.stringify(event.user_id),
  () => 'null',
  (event) => JSON.stringify({ ...event, user_id: undefined }),
  (event) => JSON.stringify({ ...event, user_id: null }),
  (event) => JSON.stringify({ ...event, user_id: 42 }),
  (event) => JSON.stringify({ ...event, user_id: '' }),
  (event) => JSON.stringify({ ...event, ip: 3_232_235_777 }),
  (event) => JSON.stringify({ ...event, device_id: [event.device_id] }),
  (event) => JSON.stringify({ ...event, device_type: { os: event.device_type } }),
  (event) => JSON.stringify({ ...event, app_version: 2.3 }),
  (event) => JSON.stringify({ ...event, locale: 'x'.repeat(2_000) }),
];

/** A body that is not a login event, in one of many ways. SQS accepts no empty body, so none is empty. */
export function malformedBody(random: Random, event: LoginEvent): string {
  return random.pick(FAULTS)(event);
}
