BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE robustlr_studies (
	name VARCHAR(200) NOT NULL, 
	hash VARCHAR(16) NOT NULL, 
	spec TEXT NOT NULL, 
	created DATETIME NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "robustlr_studies" VALUES('old','0ce6c6314319fcc5','{"name":"old","question":"","design":"grid","points":null,"seeds":1,"scale":"small","tasks":["digits-mlp"],"conditions":{},"optimizers":{"nero":{"name":"nero","target":"nero","space":{"lr":[0.01,0.1]},"default":{}},"sgd":{"name":"sgd","target":"sgd","space":{"lr":[0.1,1.0]},"default":{}}},"findings":[]}','2026-11-22 18:03:40.367877');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'old/digits-mlp/nero');
INSERT INTO "studies" VALUES(2,'old/digits-mlp/sgd');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MINIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',2,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'robustlr','{"study": "old", "task": "digits-mlp", "optimizer": "nero", "target": "nero", "scale": "small", "protocol": {"batch_size": 128, "accumulated": 1, "steps": 800, "epochs": 0, "schedule": "cosine", "warmup": 0.1, "milestones": [0.5, 0.75], "factor": 0.1, "evaluations": 10, "data": "digits", "augmentation": [], "label_smoothing": 0.0, "gradient_clip": 0.0, "gain_penalty": 0.0, "options": {"depth": 3, "width": 128}, "part": "validation", "metric": "", "worst": null}, "conditions": {}, "metric": "validation error", "direction": "minimize", "worst": 0.9, "default": {"lr": 0.01}, "space": {"lr": [0.01, 0.1]}}');
INSERT INTO "study_user_attributes" VALUES(2,2,'robustlr','{"study": "old", "task": "digits-mlp", "optimizer": "sgd", "target": "sgd", "scale": "small", "protocol": {"batch_size": 128, "accumulated": 1, "steps": 800, "epochs": 0, "schedule": "cosine", "warmup": 0.1, "milestones": [0.5, 0.75], "factor": 0.1, "evaluations": 10, "data": "digits", "augmentation": [], "label_smoothing": 0.0, "gradient_clip": 0.0, "gain_penalty": 0.0, "options": {"depth": 3, "width": 128}, "part": "validation", "metric": "", "worst": null}, "conditions": {}, "metric": "validation error", "direction": "minimize", "worst": 0.9, "default": {"lr": 0.001}, "space": {"lr": [0.1, 1.0]}}');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_intermediate_values" VALUES(1,1,1,0.9,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(2,1,2,0.25,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(3,2,1,0.9,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(4,2,2,0.5,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(5,4,1,0.9,'FINITE');
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'lr',0.01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.01, "high": 0.1, "log": true}}');
INSERT INTO "trial_params" VALUES(2,2,'lr',0.01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.01, "high": 0.1, "log": true}}');
INSERT INTO "trial_params" VALUES(3,3,'lr',0.1,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.01, "high": 0.1, "log": true}}');
INSERT INTO "trial_params" VALUES(4,4,'lr',0.001,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO "trial_params" VALUES(5,5,'lr',0.1,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
INSERT INTO "trial_params" VALUES(6,6,'lr',1.0,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.001, "high": 1.0, "log": true}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'role','"default"');
INSERT INTO "trial_user_attributes" VALUES(2,1,'seed','0');
INSERT INTO "trial_user_attributes" VALUES(3,2,'role','"design"');
INSERT INTO "trial_user_attributes" VALUES(4,2,'seed','0');
INSERT INTO "trial_user_attributes" VALUES(5,3,'role','"design"');
INSERT INTO "trial_user_attributes" VALUES(6,3,'seed','0');
INSERT INTO "trial_user_attributes" VALUES(7,4,'role','"default"');
INSERT INTO "trial_user_attributes" VALUES(8,4,'seed','0');
INSERT INTO "trial_user_attributes" VALUES(9,5,'role','"design"');
INSERT INTO "trial_user_attributes" VALUES(10,5,'seed','0');
INSERT INTO "trial_user_attributes" VALUES(11,6,'role','"design"');
INSERT INTO "trial_user_attributes" VALUES(12,6,'seed','0');
INSERT INTO "trial_user_attributes" VALUES(13,1,'worker','"node1:4242:cpu"');
INSERT INTO "trial_user_attributes" VALUES(14,1,'result','{"initial": 0.9, "test_value": 0.25, "steps": 2, "seconds": 1.5, "device": "cpu"}');
INSERT INTO "trial_user_attributes" VALUES(15,2,'worker','"node1:4242:cpu"');
INSERT INTO "trial_user_attributes" VALUES(16,2,'result','{"initial": 0.9, "test_value": 0.5, "steps": 2, "seconds": 1.5, "device": "cpu"}');
INSERT INTO "trial_user_attributes" VALUES(17,2,'diverged','true');
INSERT INTO "trial_user_attributes" VALUES(18,3,'worker','"node1:4242:cpu"');
INSERT INTO "trial_user_attributes" VALUES(19,3,'failure','"boom"');
INSERT INTO "trial_user_attributes" VALUES(20,4,'worker','"node1:4242:cpu"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,0.25,'FINITE');
INSERT INTO "trial_values" VALUES(2,2,0,0.5,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-22 18:03:40.376100','2026-11-22 18:03:40.382628');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-22 18:03:40.384753','2026-11-22 18:03:40.387052');
INSERT INTO "trials" VALUES(3,2,1,'FAIL','2026-11-22 18:03:40.388201','2026-11-22 18:03:40.389359');
INSERT INTO "trials" VALUES(4,0,2,'RUNNING','2026-11-22 18:03:40.390412',NULL);
INSERT INTO "trials" VALUES(5,1,2,'WAITING',NULL,NULL);
INSERT INTO "trials" VALUES(6,2,2,'WAITING',NULL,NULL);
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
