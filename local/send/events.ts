import { malformedBody } from './malformed.ts';
import { seededRandom, type Random } from './random.ts';

/** A login as the queue carries it. */
export interface LoginEvent {
  user_id: string;
  app_version: string;
  device_type: 'android' | 'ios' | 'web';
  ip: string;
  locale: string | null;
  device_id: string;
}

export interface EventOptions {
  /** The same seed generates the same events. */
  seed: string;
  /** The share of events with the ip and device of an earlier one, from 0 to 1. */
  duplicates: number;
  /** The share of bodies that are not login events, from 0 to 1. */
  malformed: number;
}

/** How many earlier events are kept for repeating. */
const REMEMBERED = 10_000;

const IPV6_SHARE = 0.15;
const NO_LOCALE_SHARE = 0.3;
/** Of the events that repeat a device, the share with the same user. */
const SAME_USER_SHARE = 0.5;

const LOCALES = [
  'BR', 'CA', 'CN', 'CZ', 'DE', 'FR', 'GB', 'GR', 'ID', 'IN', 'JP', 'KE', 'KR', 'MX', 'NG', 'PE', 'PH', 'PL', 'PT', 'RU', 'TH', 'UA', 'US', 'VN',
] as const; // prettier-ignore

/**
 * Generates bodies for the queue without end: logins of users who do not exist. Some users share a device.
 *
 * @returns take as many as needed; memory is bounded
 */
export function* loginEvents(options: EventOptions): Generator<string, never> {
  const random = seededRandom(options.seed);
  const earlier: LoginEvent[] = [];
  for (;;) {
    const event = nextEvent(random, earlier, options.duplicates);
    yield random.chance(options.malformed) ? malformedBody(random, event) : JSON.stringify(event);
  }
}

function nextEvent(random: Random, earlier: LoginEvent[], duplicates: number): LoginEvent {
  const repeated = random.chance(duplicates) ? earlier[random.integer(0, earlier.length - 1)] : undefined;
  if (repeated !== undefined) {
    return {
      ...repeated,
      user_id: random.chance(SAME_USER_SHARE) ? repeated.user_id : uuid(random),
      locale: locale(random),
    };
  }
  const event: LoginEvent = {
    user_id: uuid(random),
    app_version: appVersion(random),
    device_type: random.pick(['android', 'android', 'android', 'ios', 'ios', 'web']),
    ip: random.chance(IPV6_SHARE) ? ipv6(random) : ipv4(random),
    locale: locale(random),
    device_id: `${digits(random, 3)}-${digits(random, 2)}-${digits(random, 4)}`,
  };
  if (earlier.length < REMEMBERED) earlier.push(event);
  else earlier[random.integer(0, REMEMBERED - 1)] = event;
  return event;
}

function locale(random: Random): string | null {
  return random.chance(NO_LOCALE_SHARE) ? null : random.pick(LOCALES);
}

function appVersion(random: Random): string {
  const parts = [random.integer(0, 9), random.integer(0, 99)];
  if (random.chance(0.5)) parts.push(random.integer(0, 9));
  return parts.join('.');
}

function ipv4(random: Random): string {
  return [
    random.integer(1, 223),
    random.integer(0, 255),
    random.integer(0, 255),
    random.integer(1, 254),
  ].join('.');
}

/** From 2001:db8::/32, which is reserved for documentation. */
function ipv6(random: Random): string {
  const groups = Array.from({ length: 6 }, () => random.integer(1, 0xffff).toString(16));
  return ['2001', 'db8', ...groups].join(':');
}

function digits(random: Random, length: number): string {
  return String(random.integer(0, 10 ** length - 1)).padStart(length, '0');
}

/** A UUID in the format of version 4. */
function uuid(random: Random): string {
  const hex = Array.from({ length: 4 }, () =>
    random.integer(0, 0xffff_ffff).toString(16).padStart(8, '0'),
  ).join('');
  const variant = random.pick(['8', '9', 'a', 'b']);
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `4${hex.slice(13, 16)}`,
    variant + hex.slice(17, 20),
    hex.slice(20),
  ].join('-');
}
