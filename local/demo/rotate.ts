import type { StackLogin } from '../stack/logins.ts';
import { withClient } from '../postgres/client.ts';
import { rowOf } from './database.ts';

interface Distinct {
  addresses: number;
  devices: number;
}

/** Starts the rotation of the token key of addresses, as a custodian. */
export function beginRotation(urls: Record<StackLogin, string>): Promise<void> {
  return withClient(urls.custodian, async (custodian) => {
    await custodian.query(`select masking.rotate('token', 'ip')`);
  });
}

/** How many addresses and devices an analyst counts. The generated events have one address for each device. */
export function countDistinct(urls: Record<StackLogin, string>): Promise<Distinct> {
  return withClient(urls.analyst, async (analyst) => {
    const row = await rowOf<Record<keyof Distinct, string>>(
      analyst,
      `select count(distinct masked_ip) as addresses, count(distinct masked_device_id) as devices
       from public.user_logins`,
    );
    return { addresses: Number(row.addresses), devices: Number(row.devices) };
  });
}
