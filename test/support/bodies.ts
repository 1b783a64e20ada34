/** A well-formed event; equal numbers give equal addresses and devices. */
export function event(n: number, overrides: Record<string, unknown> = {}): string {
  return JSON.stringify({
    user_id: `user-${n}`,
    app_version: `${n % 10}.1.0`,
    device_type: n % 2 === 0 ? 'ios' : 'android',
    ip: `10.${(n >> 16) & 255}.${(n >> 8) & 255}.${n & 255}`,
    locale: n % 3 === 0 ? null : 'RU',
    device_id: `device-${n}`,
    ...overrides,
  });
}

/** `count` events, of which every fiftieth is malformed. */
export function events(count: number): string[] {
  return Array.from({ length: count }, (_, n) => (n % 50 === 49 ? event(n, { user_id: null }) : event(n)));
}
