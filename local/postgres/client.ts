import type pg from 'pg';
import { createClient } from '../../src/database/client.ts';

/** Connects to a database for as long as `use` takes. */
export async function withClient<T>(
  connectionString: string,
  use: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const client = createClient(connectionString, 'masked-logins local');
  await client.connect();
  try {
    return await use(client);
  } finally {
    await client.end();
  }
}
