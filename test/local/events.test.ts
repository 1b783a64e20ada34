import { describe, expect, test } from 'vitest';
import { loginEvents, type EventOptions, type LoginEvent } from '../../local/send/events.ts';

const COUNT = 5_000;

function bodies(options: Partial<EventOptions> = {}, count = COUNT): string[] {
  return [...loginEvents({ seed: 'test', duplicates: 0, malformed: 0, ...options }).take(count)];
}

function events(options: Partial<EventOptions> = {}): LoginEvent[] {
  return bodies(options).map((body) => JSON.parse(body) as LoginEvent);
}

describe('made-up login events', () => {
  test('are the same for the same seed', () => {
    const options = { duplicates: 0.2, malformed: 0.1 };
    expect(bodies(options)).toEqual(bodies(options));
    expect(bodies(options)).not.toEqual(bodies({ ...options, seed: 'another' }));
  });

  test('have every field, and a null locale now and then', () => {
    const all = events();
    const fields = ['user_id', 'app_version', 'device_type', 'ip', 'locale', 'device_id'];
    expect(all.every((event) => Object.keys(event).join() === fields.join())).toBe(true);
    expect(share(all, (event) => event.locale === null)).toBeCloseTo(0.3, 1);
    expect(new Set(all.map((event) => event.device_type))).toEqual(new Set(['android', 'ios', 'web']));
  });

  test('have user ids that are UUIDs, each its own', () => {
    const ids = events().map((event) => event.user_id);
    expect(
      ids.every((id) => /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(id)),
    ).toBe(true);
    expect(new Set(ids).size).toBe(COUNT);
  });

  test('come from IPv4 and IPv6 addresses', () => {
    expect(share(events(), (event) => event.ip.includes(':'))).toBeCloseTo(0.15, 1);
  });

  test('repeat the ip and device of an earlier one as often as asked', () => {
    const seen = new Set<string>();
    const repeats = events({ duplicates: 0.2 }).filter(({ ip, device_id }) => {
      const pair = `${ip} ${device_id}`;
      const repeat = seen.has(pair);
      seen.add(pair);
      return repeat;
    });
    expect(repeats.length / COUNT).toBeCloseTo(0.2, 1);
  });

  test('are malformed as often as asked, in many ways, and never empty', () => {
    const all = bodies({ malformed: 0.1 });
    const malformed = all.filter((body) => !isEvent(body));
    expect(malformed.length / COUNT).toBeCloseTo(0.1, 1);
    expect(new Set(malformed.map(shapeOf)).size).toBeGreaterThan(8);
    expect(all.every((body) => body.length > 0)).toBe(true);
  });

  test('are all malformed when that is asked, and none when it is not', () => {
    expect(bodies({ malformed: 1 }).some(isEvent)).toBe(false);
    expect(bodies({ malformed: 0 }).every(isEvent)).toBe(true);
  });
});

function share<T>(items: T[], condition: (item: T) => boolean): number {
  return items.filter(condition).length / items.length;
}

function parsed(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch {
    return undefined;
  }
}

function isEvent(body: string): boolean {
  const value = parsed(body);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false;
  const { locale, ...rest } = value as Record<string, unknown>;
  const strings = ['user_id', 'app_version', 'device_type', 'ip', 'device_id'].map((field) => rest[field]);
  const fits = locale === null || (typeof locale === 'string' && locale.length <= 32);
  return fits && strings.every((field) => typeof field === 'string' && field !== '');
}

function shapeOf(body: string): string {
  const value = parsed(body);
  if (typeof value !== 'object' || value === null) return typeof value;
  return Object.entries(value)
    .map(([name, field]) => `${name}:${typeof field}:${field === null}:${field === ''}`)
    .join();
}
