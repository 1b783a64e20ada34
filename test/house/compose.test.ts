import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { GetQueueAttributesCommand, SQSClient } from '@aws-sdk/client-sqs';
import { Ajv } from 'ajv';
import { startFauxqs } from 'fauxqs';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { readSettings, SPECS } from '../../src/config.ts';

/*
 * These tests run without a container engine. They check the form of the files, and that everything that the files name
 * exists.
 */

const ROOT = path.join(import.meta.dirname, '../..');
const read = (file: string) => readFileSync(path.join(ROOT, file), 'utf8');

interface Service {
  image?: string;
  build?: string;
  command?: string[];
  environment?: Record<string, string>;
  volumes?: string[];
  secrets?: string[];
  profiles?: string[];
  healthcheck?: object;
  depends_on?: Record<string, { condition: string; required?: boolean }>;
}

interface Compose {
  services: Record<string, Service>;
  volumes: Record<string, unknown>;
  secrets: Record<string, { file: string }>;
}

const compose = parse(read('docker-compose.yml'), { merge: true }) as Compose;
const services = Object.entries(compose.services);
const ours = services.filter(([, service]) => service.build !== undefined);

/** The part of the Compose specification that the file uses. Other keys are errors, so misspelt keys are found. */
const SCHEMA = {
  type: 'object',
  required: ['name', 'services'],
  additionalProperties: false,
  patternProperties: { '^x-': {} },
  properties: {
    name: { type: 'string', pattern: '^[a-z0-9][a-z0-9_-]*$' },
    volumes: { type: 'object' },
    secrets: {
      type: 'object',
      additionalProperties: {
        type: 'object',
        required: ['file'],
        additionalProperties: false,
        properties: { file: { type: 'string' } },
      },
    },
    services: { type: 'object', additionalProperties: { $ref: '#/$defs/service' } },
  },
  $defs: {
    strings: { type: 'array', items: { type: 'string' }, minItems: 1 },
    duration: { type: 'string', pattern: '^\\d+(ms|s|m)$' },
    service: {
      type: 'object',
      anyOf: [{ required: ['image'] }, { required: ['build'] }],
      additionalProperties: false,
      properties: {
        image: { type: 'string', pattern: '^[^:]+:[^:]+$' },
        build: { type: 'string' },
        command: { $ref: '#/$defs/strings' },
        init: { type: 'boolean' },
        read_only: { type: 'boolean' },
        cap_drop: { $ref: '#/$defs/strings' },
        security_opt: { $ref: '#/$defs/strings' },
        restart: { enum: ['no', 'always', 'on-failure', 'unless-stopped'] },
        stop_grace_period: { $ref: '#/$defs/duration' },
        profiles: { $ref: '#/$defs/strings' },
        ports: { type: 'array', items: { type: 'string', pattern: '^127\\.0\\.0\\.1:' } },
        environment: { type: 'object', additionalProperties: { type: 'string' } },
        volumes: { $ref: '#/$defs/strings' },
        secrets: { $ref: '#/$defs/strings' },
        healthcheck: {
          type: 'object',
          required: ['test'],
          additionalProperties: false,
          properties: {
            test: { $ref: '#/$defs/strings' },
            interval: { $ref: '#/$defs/duration' },
            timeout: { $ref: '#/$defs/duration' },
            retries: { type: 'integer' },
          },
        },
        depends_on: {
          type: 'object',
          additionalProperties: {
            type: 'object',
            required: ['condition'],
            additionalProperties: false,
            properties: {
              condition: {
                enum: ['service_started', 'service_healthy', 'service_completed_successfully'],
              },
              required: { type: 'boolean' },
            },
          },
        },
      },
    },
  },
};

/** Replaces `${NAME:-value}` by its default, as Compose does if the variable is not set. */
const withDefaults = (text: string) => text.replaceAll(/\$\{[A-Z_]+:-([^}]*)\}/g, '$1');

describe('docker-compose.yml', () => {
  test('has the form of a Compose file, and publishes ports only on the local machine', () => {
    const validate = new Ajv({ allErrors: true }).compile(SCHEMA);
    validate(compose);
    expect(validate.errors).toBeNull();
  });

  test('mounts only files and volumes that exist', () => {
    const sources = services.flatMap(([, { volumes = [] }]) =>
      volumes.map((volume) => volume.split(':')[0]!),
    );
    const files = sources.filter((source) => source.startsWith('.'));
    expect(files).not.toHaveLength(0);
    expect(files.filter((file) => !existsSync(path.join(ROOT, file)))).toEqual([]);
    const named = sources.filter((source) => !source.startsWith('.'));
    expect(named.filter((name) => !(name in compose.volumes))).toEqual([]);
  });

  test('runs only commands that exist', () => {
    const commands = ours.map(([, { command = [] }]) => command[0]!);
    expect(commands).toContain('migrate');
    expect(commands.filter((command) => !existsSync(path.join(ROOT, `src/cli/${command}.ts`)))).toEqual([]);
  });

  test('waits only for services that exist, and for the health only of services with a health check', () => {
    const waits = services.flatMap(([, { depends_on: on = {} }]) => Object.entries(on));
    expect(waits.filter(([name]) => !(name in compose.services))).toEqual([]);
    // A service with a profile may not be running, so it must not be required.
    const wrong = waits.filter(
      ([name, { required = true }]) => required !== (compose.services[name]?.profiles === undefined),
    );
    expect(wrong).toEqual([]);
    // The emulator's image contains a health check.
    const checked = new Set([
      'sqs',
      ...services.filter(([, each]) => each.healthcheck).map(([name]) => name),
    ]);
    const unchecked = waits.filter(
      ([name, { condition }]) => condition === 'service_healthy' && !checked.has(name),
    );
    expect(unchecked).toEqual([]);
  });

  test('sets only settings that exist, to valid values', () => {
    const known = new Set([
      ...Object.keys(SPECS),
      'AWS_REGION',
      'AWS_ACCESS_KEY_ID',
      'AWS_SECRET_ACCESS_KEY',
    ]);
    const variables = ours.flatMap(([, { environment = {} }]) => Object.keys(environment));
    expect(variables.filter((variable) => !known.has(variable))).toEqual([]);
    for (const [, { environment = {} }] of ours) {
      const values = Object.entries(environment).map(([variable, value]) => [variable, withDefaults(value)]);
      const given = Object.fromEntries(values);
      expect(() => readSettings(given)).not.toThrow();
    }
  });

  test('gives the key-encryption key only to the worker, as a file', () => {
    const holders = services.filter(([, { secrets = [] }]) => secrets.includes('kek')).map(([name]) => name);
    expect(holders).toEqual(['worker']);
    expect(compose.services['worker']?.environment?.['MASKING_KEK_FILE']).toBe('/run/secrets/kek');
    expect(services.filter(([, { environment = {} }]) => 'MASKING_KEK' in environment)).toEqual([]);
    // The key file of a developer is never committed.
    const { file } = compose.secrets['kek']!;
    expect(path.normalize(withDefaults(file))).toMatch(/^\.local\//);
    expect(read('.gitignore').split('\n')).toContain('.local/');
  });

  test('uses the same version of the emulator as the tests', () => {
    const { devDependencies } = JSON.parse(read('package.json')) as {
      devDependencies: Record<string, string>;
    };
    expect(compose.services['sqs']?.image).toBe(`kibertoad/fauxqs:${devDependencies['fauxqs']}`);
  });

  test('uses the queue that the emulator creates, which has a dead-letter queue', async () => {
    const server = await startFauxqs({
      port: 0,
      logger: false,
      init: path.join(ROOT, 'deploy/compose/fauxqs/init.json'),
    });
    const endpoint = `http://127.0.0.1:${server.port}`;
    const client = new SQSClient({
      endpoint,
      region: 'us-east-1',
      credentials: { accessKeyId: 'local', secretAccessKey: 'local' },
    });
    try {
      const given = withDefaults(compose.services['load']!.environment!['SQS_QUEUE_URL']!);
      const { Attributes } = await client.send(
        new GetQueueAttributesCommand({
          QueueUrl: endpoint + new URL(given).pathname,
          AttributeNames: ['RedrivePolicy'],
        }),
      );
      expect(JSON.parse(Attributes!['RedrivePolicy']!)).toMatchObject({ maxReceiveCount: '50' });
    } finally {
      client.destroy();
      await server.stop();
    }
  });
});

describe('Dockerfile', () => {
  const copied = [...read('Dockerfile').matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(([, files]) =>
    files!.split(' '),
  );

  test('copies only files that exist and that .dockerignore does not exclude', () => {
    const lines = new Set(read('.dockerignore').split('\n'));
    expect(copied).not.toHaveLength(0);
    expect(copied.filter((file) => !existsSync(path.join(ROOT, file)))).toEqual([]);
    expect(copied.filter((file) => !lines.has(`!${file}`))).toEqual([]);
  });

  test('does not run as root', () => {
    expect(read('Dockerfile')).toMatch(/^USER node$/m);
  });
});
